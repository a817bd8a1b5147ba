"""Circuits of qubits, simulated: examples become states, and measurements of a state are the classes."""
