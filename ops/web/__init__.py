"""An HTTP server for strangers, on uvicorn: what `fednc serve` and `fednc console` listen with."""
