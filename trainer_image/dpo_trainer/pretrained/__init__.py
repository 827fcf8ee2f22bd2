"""A pretrained model as a folder on disk: files, checks, digest. No torch."""
