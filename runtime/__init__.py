"""An exported file in, text and numbers out: engines, proofs of parity, quality, speed and memory."""
