"""The wire: `federation.proto` and the code generated from it by `make protos`."""
