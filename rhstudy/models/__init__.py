"""Loading models, knowing where they keep heads, watching attention, generating."""
