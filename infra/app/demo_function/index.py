"""The function of `penstock demo`: prices an order, as somebody's first function might.

It fails on orders that it can't read (poison), and now and then for a reason that passes (tried again by the lane).
"""

import json
import random
import time


def main_handler(event, context):
    for record in event["Records"]:
        entered_ms = time.time() * 1000
        source = record["Ckafka"]
        order = json.loads(source["msgBody"])
        if random.random() < 0.01:
            raise ConnectionError("the price list did not answer")
        time.sleep(random.uniform(0.002, 0.02))
        total = sum(item["price"] * item["count"] for item in order["items"])
        done = {
            "customer": order["customer"],
            "number": order["number"],
            "total": round(total, 2),
            "latency_ms": round(entered_ms - order["sent_ms"], 1),
        }
        print(json.dumps(done), flush=True)
    return "priced"
