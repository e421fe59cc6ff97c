"""Treatments: what changes the update inside the optimizer, one factor sigma per layer and step."""
