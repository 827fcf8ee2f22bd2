"""Where bytes come from: hub, files, claims, object stores, the shared cache."""
