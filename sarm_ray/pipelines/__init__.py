"""The only importers of ray: plain functions of core, data and model put into chains."""
