"""The harness: cells, grids, data, models, one engine, costs, dispatch."""
