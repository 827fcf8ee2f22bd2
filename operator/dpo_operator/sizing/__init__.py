"""What a job needs: memory of each rank and time of a step, estimated without torch and without the weights."""
