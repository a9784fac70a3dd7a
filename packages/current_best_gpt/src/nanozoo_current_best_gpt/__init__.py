"""The modded-nanogpt speedrun record: what currently learns fastest per token, on any device."""
