"""Tokenizers: opens the tokenizer of a checkpoint, or says in one line why not; never imports the model or its weights."""
