"""A run to hand out: its adapter in; adapter, merged model or GGUF out, checked to answer alike."""
