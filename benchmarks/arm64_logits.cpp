// Token ids and logits of a GGUF, for benchmarks/arm64.py: read on one processor, compared on another.
//
//   arm64_logits MODEL THREADS IN OUT
//
// IN has a line for each sequence: `T` and a text to tokenize, or `I`, a place and token ids to run. OUT has for each the
// number of its ids and of its rows of logits (0 of a text), the ids, and float32 logits after the token at that place and
// each later one. Of an encoder-decoder the ids up to that place are the source, and the first row is that of the start
// token.

#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(const std::string & what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::exit(1);
}

std::vector<llama_token> read_ids(const llama_vocab * vocab, const std::string & line, size_t & start) {
    const std::string rest = line.size() > 2 ? line.substr(2) : "";
    std::vector<llama_token> ids;
    if (line[0] == 'I') {
        std::istringstream words(rest);
        words >> start;
        for (llama_token id; words >> id;) {
            ids.push_back(id);
        }
        return ids;
    }
    ids.resize(rest.size() + 8);
    const int count = llama_tokenize(vocab, rest.data(), rest.size(), ids.data(), ids.size(), false, true);
    if (count < 0) {
        fail("cannot tokenize");
    }
    ids.resize(count);
    return ids;
}

// Fill a batch with ids, and ask for the logits of all.
void fill(llama_batch & batch, const std::vector<llama_token> & ids) {
    batch.n_tokens = ids.size();
    for (size_t i = 0; i < ids.size(); i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 5) {
        fail("usage: arm64_logits MODEL THREADS IN OUT");
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        fail("cannot load the model");
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const size_t width = llama_vocab_n_tokens(vocab);

    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 512;
    parameters.n_threads = parameters.n_threads_batch = std::atoi(argv[2]);
    parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    llama_context * context = llama_init_from_model(model, parameters);
    if (!context) {
        fail("cannot make a context");
    }

    std::ifstream in(argv[3]);
    std::ofstream out(argv[4], std::ios::binary);
    llama_batch batch = llama_batch_init(512, 0, 1);
    for (std::string line; std::getline(in, line);) {
        size_t start = 0;
        const std::vector<llama_token> ids = read_ids(vocab, line, start);
        const int32_t count = ids.size();
        if (count < 1 || count > 512 || start >= ids.size()) {
            fail("a sequence has 1 to 512 tokens, and its place is one of them");
        }
        const int32_t rows = line[0] == 'I' ? count - start : 0;
        out.write(reinterpret_cast<const char *>(&count), sizeof count);
        out.write(reinterpret_cast<const char *>(&rows), sizeof rows);
        out.write(reinterpret_cast<const char *>(ids.data()), count * sizeof(llama_token));
        if (rows == 0) {
            continue;
        }
        llama_memory_clear(llama_get_memory(context), true);
        std::vector<llama_token> decoded = ids;
        if (llama_model_has_encoder(model)) {
            decoded.assign(ids.begin() + start + 1, ids.end());
            decoded.insert(decoded.begin(), llama_model_decoder_start_token(model));
            fill(batch, {ids.begin(), ids.begin() + start + 1});
            if (llama_encode(context, batch) != 0) {
                fail("cannot encode");
            }
            start = 0;
        }
        fill(batch, decoded);
        if (llama_decode(context, batch) != 0) {
            fail("cannot decode");
        }
        for (size_t i = start; i < decoded.size(); i++) {
            out.write(reinterpret_cast<const char *>(llama_get_logits_ith(context, i)), width * sizeof(float));
        }
    }
    if (!out.flush()) {
        fail("cannot write");
    }
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
}
