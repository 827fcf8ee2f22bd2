"""What every phase needs: errors and exit codes, stop requests, termination report, work folder. No torch."""
