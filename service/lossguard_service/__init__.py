"""The Lossguard service: stores what trainers send, finds incidents, answers the gate, shows the pages."""
