"""Language models' agents: which situations they are asked about, the calls, and what comes of a reply."""
