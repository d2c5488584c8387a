"""Models that a server answers for, through the OpenAI chat API: what is asked, what it costs, what came back."""
