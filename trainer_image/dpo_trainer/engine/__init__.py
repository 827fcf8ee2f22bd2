"""DeepSpeed ZeRO-3 around the policy: configuration, optimizer, loss scale, memory."""
