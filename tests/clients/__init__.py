"""Tencent Cloud's own clients, driven against a running fabric: each is a `Client` that calls an action and gives its answer."""
