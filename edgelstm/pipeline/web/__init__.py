"""The running service over HTTP: its figures for Prometheus, an API, and a page to look at. Needs FastAPI and uvicorn (``edgelstm[live]``).

May import: pipeline.service and below. Nothing in pipeline.service knows of it, and nothing here runs unless somebody asks.
"""
