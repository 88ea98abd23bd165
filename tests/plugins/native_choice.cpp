// Which way of computing steps is chosen, of times that are made up: steps that are stopped by other programs, a load that comes and goes.
#include <cstdio>
#include <cstdlib>

#include "choice.h"

using edgelstm::Choice;

static unsigned seed = 1;
static float draw() { return static_cast<float>((seed = seed * 1664525u + 1013904223u) >> 8) / 16777216.0f; }

// Microseconds that a step takes, and the share of steps that wait for a thread which others stop.
struct Way {
  float time, stopped;
  float step() const { return time * (1 + 0.05f * draw()) + (draw() < stopped ? 1000 + 4000 * draw() : 0); }
};

// The share of steps that were divided, after so many.
static double share(Choice& choice, Way divided, Way alone, int steps, int rows = 1) {
  int count = 0;
  for (int k = 0; k < steps; k++) {
    bool both = choice.divide(rows);
    count += both;
    choice.took(rows, both, both ? divided.step() : alone.step());
  }
  return double(count) / steps;
}

static void expect(const char* what, double found, double least, double most) {
  std::printf("%s: %.4f\n", what, found);
  if (found < least || found > most) std::exit(1);
}

int main() {
  const Way quick{250, 0}, slow{470, 0}, disturbed{250, 0.15f}, held{250, 0.8f};
  for (int round = 0; round < 10; round++) {
    Choice choice;
    // Cold: the first steps take many times as long, which says nothing of those behind them.
    for (int k = 0; k < 2; k++) choice.took(1, choice.divide(1), 20000);
    expect("soon", share(choice, quick, slow, 100), 0.9, 1);
    expect("clearly better", share(choice, quick, slow, 20000), 0.995, 1);
    expect("stopped now and then", share(choice, disturbed, {470, 0.05f}, 20000), 0.9, 1);
    share(choice, held, slow, 100);
    expect("held up", share(choice, held, slow, 20000), 0, 0.05);
    share(choice, quick, slow, 5000);
    expect("no longer", share(choice, quick, slow, 20000), 0.99, 1);
    expect("other rows", share(choice, {20, 0.02f}, {12, 0}, 20000, 2), 0, 0.02);
    expect("and others", share(choice, quick, slow, 100, 3), 0.9, 1);
  }
  std::puts("good");
}
