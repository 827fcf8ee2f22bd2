"""Rules that a DPOJob's spec must keep; the CRD's validations and the operator's own checks are made from them."""
