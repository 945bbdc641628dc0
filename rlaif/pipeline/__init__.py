"""Runs a pipeline file's stages in order, and tells what a run folder holds."""
