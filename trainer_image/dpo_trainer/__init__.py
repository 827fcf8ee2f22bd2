"""The trainer: prepare, train and export one DPOJob. Only this package needs torch; the operator runs without it."""
