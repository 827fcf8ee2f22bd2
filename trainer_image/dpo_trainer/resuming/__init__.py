"""A training that begins with a checkpoint of another job: found in that job's folder or mirror, checked, and copied to the job's own volume."""
