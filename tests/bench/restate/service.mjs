// Restate's side of tests/bench/bench_workflows.py: workflows of no-op steps, each journaled.
import * as restate from "@restatedev/restate-sdk";

// Node 20 has no withResolvers, which the SDK uses.
Promise.withResolvers ??= () => {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
};

const steps = (count) => async (ctx, name) => {
  for (let step = 0; step < count; step++) await ctx.run(`step${step}`, () => null);
  return name;
};

restate.serve({
  services: [restate.service({ name: "bench", handlers: { steps1: steps(1), steps3: steps(3), steps10: steps(10) } })],
  port: Number(process.env.PORT ?? 9180),
});
