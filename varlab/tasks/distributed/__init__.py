"""Several ranks: collectives and FSDP."""
