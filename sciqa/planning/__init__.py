"""The `plan` step: estimates of the memory, storage, machines and cost of a run, before it starts."""
