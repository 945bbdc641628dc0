"""Builds the embedded default from nothing: the tokenizer, the two tiny models and their data files.

    python -m rlaif.tiny.build [--out DIR] [--scale 1.0] [--seed 0]

Nothing is downloaded. The only source is the synthetic world (`rlaif.tiny.world`); the validation and held-out fifths
of its prompts appear in no training text.
"""
