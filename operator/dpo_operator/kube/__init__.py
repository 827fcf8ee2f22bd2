"""The edge: everything that talks to the API server or to a pod."""
