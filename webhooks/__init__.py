"""Webhooks, as API and worker both need them: which addresses may be told, how it is signed, how sent."""
