"""Runs the stages of a pipeline file, and reads run folders."""
