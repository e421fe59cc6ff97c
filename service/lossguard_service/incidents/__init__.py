"""Detector output into incidents: how far a run is judged, what the episodes are, what to advise."""
