"""The trainer: prepare, train and export one DPOJob. torch lives in this package and nowhere else."""
