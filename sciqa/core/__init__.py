"""Shared by all packages: errors, storage, options, Ray, model names."""
