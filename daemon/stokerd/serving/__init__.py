"""Deployments, their replicas, and the gateway that brings clients to them."""
