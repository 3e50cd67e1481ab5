"""Webhooks: endpoints, the project's secret, and deliveries with their tries."""
