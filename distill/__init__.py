"""Teacher and prompts in, student checkpoint out: data, student initialisation, AMMD, the training loop."""
