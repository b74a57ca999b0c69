"""Contamination audit: which questions of an exam also stand in training questions, other files or the corpus."""
