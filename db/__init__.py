"""The ground all parts stand on: tables, states, parameters, errors, settings and queries."""
