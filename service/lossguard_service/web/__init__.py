"""The pages: what people look at. Server-rendered, no build step, nothing from outside this process."""
