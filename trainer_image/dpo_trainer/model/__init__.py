"""The policy: loading, adapters, packed attention, output head."""
