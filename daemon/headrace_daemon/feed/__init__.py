"""One subscriber's pipeline: plan, fetch, assemble, and a queue of ready batches."""
