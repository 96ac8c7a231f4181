"""The pages on the families of networks: ``python -m docs.pages`` writes what is drawn and counted there."""
