"""Interventions: their language, what they do at a site, running and generating under them."""
