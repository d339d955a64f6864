// Sphinx's own scores; a heading that is what was typed comes before every text that holds the words.
var Scorer = {
  score: ([docname, title, anchor, descr, score, filename, kind]) => score + (kind === "title" ? 100 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
