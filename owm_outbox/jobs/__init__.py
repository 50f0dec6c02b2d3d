"""Jobs that ship with owm_outbox. Found by entry point, like everybody's."""
