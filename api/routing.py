"""How a noun's routes are collected."""

from fastapi import APIRouter


def make_router(tag: str) -> APIRouter:
    """Make the router of a noun, whose operations bear their functions' names."""
    return APIRouter(tags=[tag], generate_unique_id_function=lambda route: route.name)
