"""Build-time only: the CRD, the dashboards and the reference pages, generated from the code."""
