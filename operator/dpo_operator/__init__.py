"""The DPO operator: a Kubernetes controller for `DPOJob` and the `dpo` command."""
