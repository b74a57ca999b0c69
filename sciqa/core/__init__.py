"""What every room uses: errors, storage, options, Ray, the names of models."""
